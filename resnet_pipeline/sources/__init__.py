"""What a source of images holds, whatever its layout, and how its bytes are read; nothing is unpacked."""
