"""What a session is. No asyncio, no JSON, no protocol names."""
