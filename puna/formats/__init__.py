"""Every file format a Llama ships in: `open_checkpoint` reads any, `save_checkpoint` writes any."""
