"""Routing: a pure function from a request and its situation to a route with its reasons."""
