"""Who may call, and what nobody else can read or change."""
