"""What the caches of profiles are made of."""
