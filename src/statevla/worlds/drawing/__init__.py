"""Pictures of what MuJoCo simulates, in whichever world: `canvas.Canvas` draws them, on a CPU as cheaply as can be."""
