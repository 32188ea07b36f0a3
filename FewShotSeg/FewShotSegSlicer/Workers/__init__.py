"""The processes that compute: requests to them, what becomes of a request, and files for them."""
