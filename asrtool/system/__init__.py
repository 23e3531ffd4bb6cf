"""Processes, files and crashes: what keeps a killed run or a full disk from losing anything."""
