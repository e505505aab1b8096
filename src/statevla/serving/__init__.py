"""The policy server. What it shares with its clients, wire format and protocol, is theirs: `statevla_client`."""
