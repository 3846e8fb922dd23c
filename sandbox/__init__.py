"""Loopback stand-ins for Discord and the Hugging Face Hub, on which Stoa runs with no account.

The Discord here is meant to be taken for the real one by an unmodified client. What it rests on:

| fact                                                              | source in Discord's documentation                |
|-------------------------------------------------------------------|--------------------------------------------------|
| fields of requests and answers                                    | OpenAPI description of API v10                   |
| error codes and the tree of form errors                           | Reference: Error Messages; Opcodes: JSON codes   |
| snowflakes, nullable and optional fields                          | Reference: Snowflakes                            |
| permission algorithm, overwrites                                  | Topics: Permissions                              |
| buckets, headers, global 50/s, exempt interaction routes          | Topics: Rate Limits (the numbers are observed)   |
| 3 s for the first answer, 15 min for the token, kinds of answer   | Interactions: Receiving and Responding           |
| edits of messages older than an hour: 429 with code 30046         | Opcodes: JSON codes (how many is not said)       |
| 10,000 answers of 401, 403, 429 in 10 min shut an address out     | Topics: Rate Limits                              |
| limits of commands, options, choices                              | Interactions: Application Commands               |
| message menus: target, its text whatever the intents; files       | Interactions: Application Commands; Receiving    |
| a role's bits: only what the bot may do itself; role above role   | Resources: Guild; Topics: Permissions            |
| components, Components V2, modals and labels                      | Components: Reference                            |
| nonce with enforce_nonce, message flags, allowed mentions         | Resources: Message                               |
| threads: id of the message, one thread a message                  | Topics: Threads                                  |
| identify, resume, intents, close codes, 120 events a minute       | Topics: Gateway                                  |
| a deleted role: GUILD_ROLE_DELETE with the ids of guild and role  | Topics: Gateway Events                           |
| a bot removed and invited again has lost its commands there       | not said; observed (discord.js issue 10321)      |

The numbers of buckets and of edits, the replay time of a session (5 min) and of a nonce (3 min) are not documented;
they are plausible values. `tests/discord_real.py` asks the real Discord for what of this table a bot can see. State
lives in memory: a bot may restart, the sandbox itself starts afresh.
"""
