"""Admission control: which requests the server takes on."""
