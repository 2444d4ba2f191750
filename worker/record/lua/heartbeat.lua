-- Renews the lease of a running task.
--
-- task     ns:{id}:task  hash  lease_until raised
-- token    of the claim
-- lease_s
-- Returns 0, 1 when cancellation is requested, or -1 when another worker has claimed the task.
local task = unpack(KEYS)
local token, lease_s = unpack(ARGV)
local held = redis.call('HMGET', task, 'token', 'status', 'cancel_requested')
if held[1] ~= token or held[2] ~= 'running' then return -1 end
redis.call('HSET', task, 'lease_until', stamp(now_s() + lease_s))
return held[3] and 1 or 0
