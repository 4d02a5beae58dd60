"""Statistics: from the numbers of trainings to what they show; pure functions."""
