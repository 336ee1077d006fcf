"""Many runs alike, and what came of them."""
