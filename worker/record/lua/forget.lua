-- Forgets the wish to cancel a task that never turned up.
--
-- KEYS[1]  ns:{id}:task  hash        removed, unless the task has turned up
-- KEYS[2]  ns:wishes     sorted set  id removed
-- ARGV     id
redis.call('ZREM', KEYS[2], ARGV[1])
if not redis.call('HGET', KEYS[1], 'status') then redis.call('DEL', KEYS[1]) end
return 1
