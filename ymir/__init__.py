"""The platform's protocol: what YMIR writes into /in and reads from /out."""
