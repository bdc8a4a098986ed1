"""What the caches of profiles, and the listeners that make them forget, are made of."""
