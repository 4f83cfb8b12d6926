"""The gRPC system's own program: its YAML files and flags, served by Earmark."""
