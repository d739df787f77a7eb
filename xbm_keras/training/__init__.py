"""What happens between steps and between epochs."""
