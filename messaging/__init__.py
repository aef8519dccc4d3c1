"""The product: accept, persist, route, deliver, report."""
