"""A cell explains itself: equations, diagram, shapes, cost and gradient flow, all read off its `step`."""
