"""What is peculiar to a cloud."""
