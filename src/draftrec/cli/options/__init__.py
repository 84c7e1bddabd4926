"""What several commands share of their options."""
