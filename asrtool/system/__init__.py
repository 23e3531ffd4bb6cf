"""Processes, files and crashes: a killed run or a full disk loses nothing."""
