"""What people are told before they decide or while they wait. Changes nothing."""
