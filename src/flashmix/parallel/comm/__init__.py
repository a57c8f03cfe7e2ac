"""Communication between ranks: groups, collectives with gradients, chunks, shared GPU memory."""
