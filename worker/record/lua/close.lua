-- Everybody has been told of a task's end, Celery's result too: nothing is left but to push it.
--
-- KEYS[1]  ns:{id}:task        hash        TTL set, unless a push waits: then pushed.lua will
-- KEYS[2]  ns:{id}:events      stream      as the record
-- KEYS[3]  ns:open             sorted set  id removed
-- KEYS[4]  ns:{id}:checkpoint  string      removed
-- KEYS[5]  ns:pushes           sorted set  read
-- ARGV     id, seconds that the record of an ended task lives, then the kinds of pushes
-- gives    1, or 0 when the task has not ended
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'queued' or status == 'running' then return 0 end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[4])
for number = 3, #ARGV do
  if redis.call('ZSCORE', KEYS[5], ARGV[number] .. ':' .. ARGV[1]) then return 1 end
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
