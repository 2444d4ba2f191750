-- Returns a running task to the state `queued`.
--
-- task    ns:{id}:task    hash        status written; attempt decremented unless it counts
-- events  ns:{id}:events  stream      event `requeued` appended
-- open    ns:open         sorted set  id added with the current time
-- id
-- token   of the claim
-- tail    of the event `requeued`, see append_event.lua
-- counts  1 when this attempt counts
-- Returns 0, also when a former call requeued it and its answer was lost, -1 when another worker
-- has claimed the task, or 1, with nothing written, when cancellation is requested.
local task, events, open = unpack(KEYS)
local id, token, tail, counts = unpack(ARGV)
local held = redis.call('HMGET', task, 'token', 'status', 'cancel_requested')
if held[1] ~= token then return -1 end
if held[2] ~= 'running' then return held[2] == 'queued' and 0 or -1 end
if held[3] then return 1 end
append_event(task, events, tail)
redis.call('HSET', task, 'status', 'queued')
if counts ~= '1' then redis.call('HINCRBY', task, 'attempt', -1) end
redis.call('HDEL', task, 'owner', 'lease_until')
redis.call('ZADD', open, stamp(now_s()), id)
return 0
