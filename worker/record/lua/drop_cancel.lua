-- Drops the cancellation request of a task that was never submitted.
--
-- task             ns:{id}:task  hash        deleted, unless the task was submitted
-- pending_cancels  ns:wishes     sorted set  id removed
-- id
local task, pending_cancels = unpack(KEYS)
local id = unpack(ARGV)
redis.call('ZREM', pending_cancels, id)
if not redis.call('HGET', task, 'status') then redis.call('DEL', task) end
