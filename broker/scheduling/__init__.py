"""Which run starts when: fair-share, backfill, and the Celery tasks that start it."""
