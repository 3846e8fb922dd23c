"""Loopback stand-ins for Discord, the Hugging Face Hub and Kubernetes, on which Stoa runs with no account.

The Discord here is meant to be taken for the real one by an unmodified client. What it rests on:

| fact                                                              | source in Discord's documentation                |
|-------------------------------------------------------------------|--------------------------------------------------|
| fields of requests and answers                                    | OpenAPI description of API v10                   |
| error codes and the tree of form errors                           | Reference: Error Messages; Opcodes: JSON codes   |
| snowflakes, nullable and optional fields                          | Reference: Snowflakes                            |
| permission algorithm, overwrites; no messages of unseen channels  | Topics: Permissions                              |
| history: empty without its permission, a single message refused   | Resources: Message                               |
| limits of messages, embeds, files (10 of 10 MiB, 25 MiB in all)   | Resources: Message; Reference: Uploading Files   |
| edits: absent keys stay; of files, all or what is listed          | Resources: Message                               |
| `attachments` of a message: files that nothing in it shows        | Resources: Message                               |
| an edit of a V2 message lists each file that it shows, by its id  | Resources: Message; error code: public reports   |
| an edit into V2 takes old content, embeds and poll away with null | Resources: Message                               |
| who is pinged: an answer's users alone; roles, everyone by right  | Resources: Message                               |
| 500 channels, 250 roles, 1,000 active threads a guild             | Opcodes: JSON codes                              |
| a deleted channel takes its threads, a category no channel        | Resources: Channel                               |
| buckets, headers, global 50/s, exempt interaction routes          | Topics: Rate Limits (the numbers are observed)   |
| 3 s for the first answer, 15 min for the token, kinds of answer   | Interactions: Receiving and Responding           |
| edits of messages older than an hour: 429 with code 30046         | Opcodes: JSON codes (how many is not said)       |
| 10,000 answers of 401, 403, 429 in 10 min shut an address out     | Topics: Rate Limits                              |
| answers to a message or in a channel that is gone: 10008, 10003   | Opcodes: JSON codes                              |
| limits of commands (100, 15 and 15), options; who is shown them   | Interactions: Application Commands               |
| autocomplete: the other options as they stand, nothing required   | Interactions: Application Commands               |
| message menus: target, its text whatever the intents; files       | Interactions: Application Commands; Receiving    |
| a role's bits: only what the bot may do itself; role above role   | Resources: Guild; Topics: Permissions            |
| components, ids of 32 bits, modals, labels, how many are chosen   | Components: Reference                            |
| V2: a file that nothing shows is taken and not shown              | Components: Reference                            |
| a new channel's overwrites: Manage Channels, and what one may do  | Resources: Guild, Channel                        |
| nonce with enforce_nonce, message flags, allowed mentions         | Resources: Message                               |
| threads: id of the message, one thread a message                  | Topics: Threads                                  |
| an archived thread takes no edit, member (50083) or command       | Topics: Threads; Opcodes: JSON codes             |
| a locked thread is for those who may manage threads               | Topics: Threads                                  |
| identify, resume, intents, close codes, 120 events a minute       | Topics: Gateway                                  |
| a deleted role: GUILD_ROLE_DELETE with the ids of guild and role  | Topics: Gateway Events                           |
| a bot removed and invited again has lost its commands there       | not said; observed (discord.js issue 10321)      |

Not documented, and plausible values: the numbers of buckets and of edits, two changes of a name or topic in ten
minutes, 50 channels in a category, the replay time of a session (5 min) and of a nonce (3 min). Nor are: that content
is trimmed, that a new role is the lowest, and that an update of the message pressed on drops files it does not list.
Not kept: the limits of IDENTIFY (1,000 a day) and of new commands (200 a day), and that a private thread is its
members' alone. `tests/discord_real.py` asks the real Discord for what the bot's delivery rests on. State lives in
memory: a bot may restart, the sandbox itself starts afresh.
"""
