"""What the commands about cells print; each is imported when it is called, for most need torch."""
