"""Work in processes of their own: the interactive session, batches, and the client that talks to them."""
