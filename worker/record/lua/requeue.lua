-- Gives a task back: it waits again.
--
-- KEYS[1]  ns:{id}:task    hash        status, attempt
-- KEYS[2]  ns:{id}:events  stream      event `requeued` appended
-- KEYS[3]  ns:open         sorted set  id touched
-- ARGV     id, fence, event tail, 1 when the attempt counts
-- gives    1 (also when it was given back before and only the answer was lost), 0 when the task is
--          another's, or 2, with nothing written, when it is to be cancelled instead
local held = redis.call('HMGET', KEYS[1], 'fence', 'status')
if held[1] ~= ARGV[2] then return 0 end
if held[2] ~= 'running' then return held[2] == 'queued' and 1 or 0 end
if redis.call('HGET', KEYS[1], 'cancel_requested') then return 2 end
append_event(KEYS[1], KEYS[2], ARGV[3])
redis.call('HSET', KEYS[1], 'status', 'queued')
if ARGV[4] ~= '1' then redis.call('HINCRBY', KEYS[1], 'attempt', -1) end
redis.call('HDEL', KEYS[1], 'owner', 'lease_until')
redis.call('ZADD', KEYS[3], string.format('%.6f', now_s()), ARGV[1])
return 1
