"""What reviewers and operators decide: requests, changes, expiry, pools and grants."""
