"""How frozen networks are held, and how gradients pass through them."""
