"""What modcut is measured against: each peer builds its graph first, and only its solver is timed."""
