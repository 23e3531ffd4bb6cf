"""What a device holds, and what it eats."""
