"""Records, what is known of them, and the windows that are made of them."""
