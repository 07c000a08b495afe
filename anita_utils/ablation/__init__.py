"""The same recipe with stages left out or put in another order, over several seeds."""
