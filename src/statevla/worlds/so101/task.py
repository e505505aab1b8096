"""The task: words and numbers, known without loading MuJoCo."""

INSTRUCTION, MAX_STEPS = "pick up the cube", 300
