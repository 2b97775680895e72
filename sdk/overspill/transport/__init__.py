"""Roads to a node: `base` is the seam, `grpc` the real one, `memory` the one for tests."""
