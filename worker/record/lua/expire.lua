-- Ends a task that is still queued after its deadline.
--
-- task    ns:{id}:task    hash        terminal status and outcome written
-- events  ns:{id}:events  stream      event `expired` appended
-- open    ns:open         sorted set  id added; it stays until close.lua
-- id
-- tail    of the event `expired`, see append_event.lua
-- Returns 1, or 0 when the task is no longer queued or its deadline has not passed.
local task, events, open = unpack(KEYS)
local id, tail = unpack(ARGV)
local status, deadline_at = unpack(redis.call('HMGET', task, 'status', 'deadline_at'))
if status ~= 'queued' or not deadline_at or tonumber(deadline_at) > now_s() then return 0 end
append_event(task, events, tail)
local now = stamp(now_s())
redis.call('HSET', task, 'status', 'expired', 'outcome', '{"step":0}', 'ended_at', now)
redis.call('ZADD', open, now, id)
return 1
