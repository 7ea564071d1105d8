"""The only door to C: nothing outside imports the binding, no cdata leaves."""
