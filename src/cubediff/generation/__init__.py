"""What a generation is asked for, and what it leaves in its folder."""
