"""The machine: device, memory, processor, processes, files."""
