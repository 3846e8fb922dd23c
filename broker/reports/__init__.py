"""What people are told before they decide or while they wait. Only a run plan that is confirmed changes anything."""
