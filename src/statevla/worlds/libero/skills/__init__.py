"""Skills of the scripted expert: generators that yield one `motion.Command` per control step."""
