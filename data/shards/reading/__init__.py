"""Reading shards in an order that any number of processes can continue."""
