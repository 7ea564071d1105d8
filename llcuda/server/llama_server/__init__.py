"""llama-server's own API over the same engines: completions, infill, slots, templates, adapters."""
