"""`/stoa …`: setup, help, and what only admins do."""
