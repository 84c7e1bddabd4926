"""What a run was worth: reports and plots, made from plain numbers."""
