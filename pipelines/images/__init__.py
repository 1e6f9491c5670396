"""Image files: found, their headers read, damage seen, decoded for the few places that do without DALI."""
